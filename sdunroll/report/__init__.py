"""Tables and pictures of saved results."""
