"""The Ray code of a rayfed run: placement, client and server actors, the driver."""
