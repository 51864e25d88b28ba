"""What every other room may use: specs, records, folders, stamps, dependency tracking."""
