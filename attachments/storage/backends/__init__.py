"""One kind of store in each module, behind the protocol in `base`."""
