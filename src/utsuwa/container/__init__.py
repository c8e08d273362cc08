"""Topic 01: a container is a process, its namespaces and its cgroups. See README.md in this folder."""
