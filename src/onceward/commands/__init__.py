"""The commands of `onceward`: each module adds its parsers, and imports what it needs only when its command runs."""
