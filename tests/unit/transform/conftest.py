from tests.tiny import on_bert  # noqa: F401
