"""What the project's speed claims rest on."""
