{{/* What a controller of mirrors may do in this cluster. Takes settings; gives rules. */}}
{{- define "hawser-multicluster.localRules" -}}
{{- $watch := list "list" "get" "watch" }}
{{- $write := list "list" "get" "watch" "create" "delete" "update" "patch" }}
{{- $rules := list
  (dict "apiGroups" (list "") "resources" (list "endpoints" "services") "verbs" $write)
  (dict "apiGroups" (list "") "resources" (list "namespaces")
    "verbs" (ternary (append $watch "create") $watch .enableNamespaceCreation))
}}
{{- if .writeEndpointSlices }}
{{- $rules = append $rules
  (dict "apiGroups" (list "discovery.k8s.io") "resources" (list "endpointslices") "verbs" $write) }}
{{- end }}
{{- toYaml $rules }}
{{- end }}

{{/* What a controller may do with Links, in the extension's namespace. Gives rules. */}}
{{- define "hawser-multicluster.linkRules" -}}
{{- $group := list "multicluster.linkerd.io" }}
{{- toYaml (list
  (dict "apiGroups" $group "resources" (list "links") "verbs" (list "list" "get" "watch"))
  (dict "apiGroups" $group "resources" (list "links/status") "verbs" (list "update" "patch"))
  (dict "apiGroups" (list "coordination.k8s.io") "resources" (list "leases")
    "verbs" (list "create" "get" "update" "patch"))) }}
{{- end }}

{{/* Arguments that all controllers of mirrors have. Takes root, settings. */}}
{{- define "hawser-multicluster.args" -}}
- service-mirror
- --namespace={{ .root.Release.Namespace }}
- --log-level={{ .settings.logLevel }}
- --log-format={{ .settings.logFormat }}
- --metrics-addr=0.0.0.0:9999
{{- if .settings.enableHeadlessServices }}
- --enable-headless-services
{{- end }}
{{- if .settings.enableNamespaceCreation }}
- --enable-namespace-creation
{{- end }}
{{- if .settings.writeEndpointSlices }}
- --write-endpoint-slices
{{- end }}
{{- end }}

{{/* What all controllers' workloads have. Takes root. */}}
{{- define "hawser-multicluster.image" -}}
{{ .Values.controllerImage }}:{{ .Values.controllerImageVersion | default (include "hawser-extension.version" .) }}
{{- end }}
