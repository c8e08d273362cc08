"""Topic 05: what stays and what goes: the writable layer, volumes, bind mounts. See README.md in this folder."""
