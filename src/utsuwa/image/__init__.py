"""Images: from a registry's answer to directories that overlayfs stacks. Start with README.md in this folder."""
