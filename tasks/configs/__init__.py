"""Ready YAML files."""
