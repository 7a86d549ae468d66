"""The runtime's statements; see `onceward.statements`."""
