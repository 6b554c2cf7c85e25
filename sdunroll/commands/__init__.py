"""What the commands do: config -> objects -> library calls -> files."""
