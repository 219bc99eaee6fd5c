"""The one decode loop, what it decodes, and the service that runs it in a thread."""
