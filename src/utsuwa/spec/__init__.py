"""Plain data that crosses packages: runtime configuration, images, references, networks, mounts. No behaviour."""
