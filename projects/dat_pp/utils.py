"""What mmengine's hub and registries look for in ``<package>.utils``."""


def register_all_modules(init_default_scope: bool = True) -> None:
    """Do nothing: importing ``dat_pp`` has registered its modules, in mmengine's root registry.

    Args:
        init_default_scope: Taken because the libraries' functions of this name take it. This
            package has no scope of its own: its configs name the library that builds them.
    """
