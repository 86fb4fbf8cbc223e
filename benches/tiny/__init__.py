"""The bundled tiny models: architecture, tasks, trainer, loader."""
