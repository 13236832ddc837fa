"""Whether a job's tasks have the same bits however they are computed: what the processes of `thalweg doctor` run."""
