"""The one policy engine: who may do what (``engine``), what may be served (``admission``), and why in words (``explain``).

Policies are Cedar (https://www.cedarpolicy.com), evaluated by cedarpy. The traps of Cedar are closed in ``cedar``: policies are
validated against a schema when loaded, requests and entities when decided, and any diagnostics error is a denial.
"""
