"""The pocket that a card trains within minutes: klein's architecture, larger panels, the richer world."""
