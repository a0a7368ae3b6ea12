"""Networks: the registry, the adapter, checks where a network is taken in."""
