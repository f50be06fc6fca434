"""The stages, one file each. `trainer.settings.registry` finds them by name."""
