"""Methods that are no gradient transformation: training steps of their own, or losses."""
