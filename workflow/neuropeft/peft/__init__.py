"""Methods that adapt a backbone: one file per family, `adapt` as the door."""
