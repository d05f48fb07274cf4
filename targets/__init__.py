"""What a device is, which targets there are, and the backends that measure on them."""
