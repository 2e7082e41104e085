"""Methods that drop visual tokens between decoder layers while the prompt is read, one file each."""
