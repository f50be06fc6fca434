"""The stages, one file each. `trainer.settings.stage_registry` finds them by name."""
