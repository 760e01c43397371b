"""The recipe: one module per stage of the build of the pocket model (see ``triptych.pocket.build``)."""
