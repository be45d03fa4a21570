"""The built-in plugins. They come in by entry points, like any other package's."""
