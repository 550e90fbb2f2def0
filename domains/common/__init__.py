"""Parts that more than one domain uses."""
