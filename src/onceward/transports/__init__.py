"""One file per transport; the core imports none of them."""
