"""neo-tf behind HTTP: one app over the engine's Service."""
