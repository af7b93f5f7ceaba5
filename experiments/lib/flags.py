"""The flags of a run, one for each field of `Config`, defined on import."""

import dataclasses
import types
from collections.abc import Collection

from absl import flags

from agsfl.config import Config
from agsfl.settings import is_optional, kinds_of, said_of
from agsfl.words import whole

_MAKERS = {
    (str,): flags.DEFINE_string,
    (bool,): flags.DEFINE_boolean,
    (int,): flags.DEFINE_integer,
    (float,): flags.DEFINE_float,
    (float, str): flags.DEFINE_string,  # a number, or a share such as 1%
}

NAMES = tuple(field.name for field in dataclasses.fields(Config))


def _help(field):
  """The help of a setting, with the names that it may have."""
  said = said_of(field)
  if said.choices is None:
    return said.help
  return f"{said.help} One of: {', '.join(map(str, said.choices))}."


# Choices are checked by Config: plugins add names after flags are defined.
for _field in dataclasses.fields(Config):
  _MAKERS[kinds_of(_field)](_field.name, _field.default, _help(_field))


def parse(name: str, text: str):
  """The value of a setting that a text stands for, as on the command line.

  Args:
    name: of the setting.
    text: such as "1%", or "None" where the setting may be None.

  Raises:
    ValueError: the text is no value of this setting's type.
  """
  fields = {field.name: field for field in dataclasses.fields(Config)}
  if text == "None" and is_optional(fields[name]):
    return None
  return flags.FLAGS[name].parser.parse(text)


def given(module: types.ModuleType, but: Collection[str]) -> list[str]:
  """The flags of a module as they were given to this command.

  Args:
    module: its key flags are meant.
    but: names of flags to leave out.

  Returns:
    Words of a command line; a flag that was not given is not among them.
  """
  return [
      word
      for flag in flags.FLAGS.get_key_flags_for_module(module)
      if flag.present and flag.name not in but
      for word in flag.serialize().splitlines()
  ]


def words_of(config: Config) -> list[str]:
  """The words of a command line that make a Config.

  Args:
    config: the settings.

  Returns:
    A flag for each setting that is not its default, and for the seed.
  """
  return [
      f"--{field.name}={whole(value)}"
      for field in dataclasses.fields(Config)
      if (value := getattr(config, field.name)) != field.default
      or field.name == "seed"
  ]


def config_from_flags() -> Config:
  """The Config that the command line asks for.

  Raises:
    ConfigError: a value is out of range.
  """
  return Config(**{name: flags.FLAGS[name].value for name in NAMES})
