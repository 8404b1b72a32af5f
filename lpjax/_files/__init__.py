"""Reading untrusted files within limits, and writing files whole or not at all."""
