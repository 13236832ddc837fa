"""What is raised where a state cannot be."""


class ImpossibleError(Exception):
    """A state that no order of events leads to: a defect of the server. The job fails, the server goes on."""
