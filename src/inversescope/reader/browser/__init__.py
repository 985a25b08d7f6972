"""The browser of samples: one page that needs no other file. `page(data)` writes it, of a study or of a single reading."""

from inversescope.reader.browser.data import BrowserData, Draws, Source, Texts
from inversescope.reader.browser.document import page

__all__ = ["BrowserData", "Draws", "Source", "Texts", "page"]
