# Formats the output of cargo-about as the file THIRD-PARTY of the packages.
"Third-party works in caxton and caxtond
=======================================

The programs contain the works below. Each is followed by the licence that it
is used under; where its authors offer several, one was chosen.",
(.licenses[] | "
--------------------------------------------------------------------------------
\(.name)

Used by:
\(.used_by | map(.crate | "  \(.name) \(.version)" + if .repository then "  \(.repository)" else "" end) | join("\n"))
\(.text)")
