"""Topic 06, security: the walls around a process, as data. See README.md in this folder."""
