"""Pictures over HTTP: a queue of jobs on the disk, one worker, and an API."""
