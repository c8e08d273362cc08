"""Topic 02: the OCI verbs. What makes a container out of a config.json. See README.md in this folder."""
