from inversescope.errors import InputError as InputError
from inversescope.reader.reading import Reading as Reading
from inversescope.reader.scope import Scope as Scope
from inversescope.reader.scope import templates as templates
from inversescope.reader.study import open_study as open_study

__version__: str
