//go:build tools

// Pins Helm, with which the tests render the charts: go build -o helm helm.sh/helm/v3/cmd/helm
package tools

import _ "helm.sh/helm/v3/cmd/helm"
