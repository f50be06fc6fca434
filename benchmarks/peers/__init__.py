"""What people use instead of this project's cache and loader, each in an environment of its own: `make peers`.

`client.Peer` starts `serve` with an environment's interpreter; what runs there imports none of this project's packages.
"""
