"""Decoder and client: bytes -> prompts -> frames, session logic, quality measures.

Only the light half (bitstream, manifest, presentation, session, events, log) imports without torch; import the rest
by module name.
"""
