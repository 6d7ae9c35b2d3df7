"""Process managers: what happens elsewhere is reacted to with commands and timeouts, each once.

:mod:`.manager` is what users declare, :mod:`.definition` what that comes to, and :mod:`.actions`
what their functions answer. :mod:`.reacting` takes messages, one instance at a time;
:mod:`.reactions` is what is stored of a reaction; :mod:`.commands` carries commands out;
:mod:`.timeouts` delivers timeouts. :mod:`.inspection` looks at managers through a log alone.
"""
