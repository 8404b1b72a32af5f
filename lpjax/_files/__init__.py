"""Reading files from elsewhere within limits, and writing files whole or not at all."""
