"""Topic 04, networks: namespaces joined to a bridge, addresses, translation, published ports. See README.md in this folder."""
