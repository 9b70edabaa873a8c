"""Small training programs as users write them, without a method and with one."""
