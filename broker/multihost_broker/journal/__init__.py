"""What outlives the broker: records in a store on the disk, and the thread that commits them in groups."""
