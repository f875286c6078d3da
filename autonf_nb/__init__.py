"""Find the normalizing flow that gives the best density for its cost, by gradient."""

__version__ = "0.1.0"
__all__ = ["AutoNF"]


def __getattr__(name: str):
    # torch takes seconds to import, so the estimator is only loaded when somebody asks for it
    if name == "AutoNF":
        from autonf_nb.estimator import AutoNF
        return AutoNF
    raise AttributeError(f"module 'autonf_nb' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
