"""HTTP over the Service: one app, one folder a protocol."""
