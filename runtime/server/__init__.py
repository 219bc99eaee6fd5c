"""HTTP over the Service: one app, one file a protocol."""
