"""The protocols of the hosted services that the model cards show."""
