"""The protocol, pure: its words, the steps of a delivery, the steps of a relay's lane."""
