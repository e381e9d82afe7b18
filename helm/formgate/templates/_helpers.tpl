{{- define "formgate.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* The release's name, once: 46 characters leave room for the longest ending, and for a hash. */}}
{{- define "formgate.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 46 | trimSuffix "-" }}
{{- else }}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 46 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 46 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "formgate.selectorLabels" -}}
app.kubernetes.io/name: {{ include "formgate.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* For (list context component). */}}
{{- define "formgate.labels" -}}
{{- $component := index . 1 }}
{{- with index . 0 -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "formgate.selectorLabels" . }}
app.kubernetes.io/component: {{ $component }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: formgate
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}
{{- end }}

{{- define "formgate.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}
{{- end }}

{{- define "formgate.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "formgate.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* The migration runs before the release's own ServiceAccount is there: it has one of its own, unless yours is used. */}}
{{- define "formgate.migrationServiceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- printf "%s-migrate" (include "formgate.fullname" .) }}
{{- else }}
{{- include "formgate.serviceAccountName" . }}
{{- end }}
{{- end }}

{{/* The name of a Secret, for (list context reference ending). */}}
{{- define "formgate.secretName" -}}
{{- default (printf "%s-%s" (include "formgate.fullname" (index . 0)) (index . 2)) (index . 1).existingSecret }}
{{- end }}

{{- define "formgate.tlsSecretName" -}}
{{- include "formgate.secretName" (list . .Values.tls "tls") }}
{{- end }}

{{- define "formgate.clientCaKey" -}}
{{- default .Values.tls.caKey .Values.tls.mutual.caKey }}
{{- end }}

{{- define "formgate.replicas" -}}
{{- if kindIs "invalid" .Values.replicaCount }}{{ ternary 1 2 .Values.embedded }}{{ else }}{{ int .Values.replicaCount }}{{ end }}
{{- end }}

{{/*
Autoscaled, as many as there are: left out, an upgrade that turns autoscaling on would first shrink them to one. Where
no Deployment can be seen there is nothing to shrink, and what renders without the cluster must not undo the autoscaler.
*/}}
{{- define "formgate.replicasNow" -}}
{{- if not .Values.autoscaling.enabled }}
{{- include "formgate.replicas" . }}
{{- else }}
{{- with lookup "apps/v1" "Deployment" .Release.Namespace (include "formgate.fullname" .) }}{{ int .spec.replicas }}{{ end }}
{{- end }}
{{- end }}

{{/* How many processes share the limits when Redis is down. */}}
{{- define "formgate.processes" -}}
{{- $pods := include "formgate.replicas" . | int }}
{{- if .Values.autoscaling.enabled }}{{ $pods = int .Values.autoscaling.maxReplicas }}{{ end }}
{{- mul (max $pods 1) (int .Values.workers) }}
{{- end }}

{{- define "formgate.grace" -}}
{{- $least := add .Values.preStopSeconds (ceil .Values.settings.drainSeconds) }}
{{- if kindIs "invalid" .Values.terminationGracePeriodSeconds }}{{ add $least 15 }}{{ else }}{{ int .Values.terminationGracePeriodSeconds }}{{ end }}
{{- end }}

{{/* What no schema can say: values that do not go together. */}}
{{- define "formgate.validate" -}}
{{- if .Values.embedded }}
{{- if gt (include "formgate.replicas" . | int) 1 }}
{{- fail "embedded: true is one server with one data folder: replicaCount must be 1, or not set. For more, give it PostgreSQL and Redis" }}
{{- end }}
{{- if gt (int .Values.workers) 1 }}
{{- fail "embedded: true is one process: workers must be 1" }}
{{- end }}
{{- if .Values.autoscaling.enabled }}
{{- fail "embedded: true is one server: autoscaling.enabled must be false" }}
{{- end }}
{{- end }}
{{- if eq (int .Values.ports.grpc) (int .Values.ports.http) }}
{{- fail "ports.grpc and ports.http are the same: the server can not listen twice on one port" }}
{{- end }}
{{- if and .Values.autoscaling.enabled (gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) }}
{{- fail "autoscaling.minReplicas is above autoscaling.maxReplicas" }}
{{- end }}
{{- if and (not .Values.tls.enabled) (not .Values.insecure) }}
{{- fail "tls.enabled is false: keys and tokens would travel in clear. Say insecure: true where a mesh encrypts them" }}
{{- end }}
{{- if and .Values.tls.enabled .Values.insecure }}
{{- fail "insecure: true means nothing with tls.enabled: say one of them" }}
{{- end }}
{{- if and .Values.tls.mutual.enabled (not .Values.tls.enabled) }}
{{- fail "tls.mutual.enabled needs tls.enabled" }}
{{- end }}
{{- if and .Values.tls.mutual.enabled (not (include "formgate.clientCaKey" .)) }}
{{- fail "tls.mutual.enabled needs the key of the clients' authority: tls.mutual.caKey, where tls.caKey is empty" }}
{{- end }}
{{- if and .Values.tls.mutual.identities (not .Values.tls.mutual.enabled) }}
{{- fail "tls.mutual.identities needs tls.mutual.enabled: who shows no certificate has no identity" }}
{{- end }}
{{- if .Values.tls.certManager.enabled }}
{{- if not .Values.tls.enabled }}
{{- fail "tls.certManager.enabled needs tls.enabled" }}
{{- end }}
{{- if not .Values.tls.certManager.issuerRef.name }}
{{- fail "tls.certManager.enabled needs tls.certManager.issuerRef.name" }}
{{- end }}
{{- end }}
{{- if le (include "formgate.grace" . | int) (add .Values.preStopSeconds (ceil .Values.settings.drainSeconds) | int) }}
{{- fail "terminationGracePeriodSeconds must be above preStopSeconds + settings.drainSeconds, or calls are cut off" }}
{{- end }}
{{- end }}

{{- define "formgate.databaseEnv" -}}
- name: FORMGATE_DATABASE_URL
  valueFrom:
    secretKeyRef:
      name: {{ include "formgate.secretName" (list . .Values.secrets.database "database") }}
      key: {{ .Values.secrets.database.key }}
{{- end }}

{{/* The server's environment. */}}
{{- define "formgate.env" -}}
{{- if .Values.embedded -}}
- name: FORMGATE_DATA
  value: /var/lib/formgate/data
{{- else -}}
{{ include "formgate.databaseEnv" . }}
- name: FORMGATE_REDIS_URL
  valueFrom:
    secretKeyRef:
      name: {{ include "formgate.secretName" (list . .Values.secrets.redis "redis") }}
      key: {{ .Values.secrets.redis.key }}
- name: FORMGATE_PEPPER_FILE
  value: /etc/formgate/secrets/pepper
- name: FORMGATE_SEALING_KEY_FILE
  value: /etc/formgate/secrets/sealing-key
- name: FORMGATE_WORKERS
  value: {{ .Values.workers | quote }}
- name: FORMGATE_PROCESSES
  value: {{ include "formgate.processes" . | quote }}
{{- end }}
{{- if .Values.secrets.bootstrapToken.enabled }}
- name: FORMGATE_BOOTSTRAP_TOKEN_FILE
  value: /etc/formgate/secrets/bootstrap-token
{{- end }}
- name: FORMGATE_LISTEN
  value: {{ printf "%s:%d" .Values.listenAddress (int .Values.ports.grpc) | quote }}
- name: FORMGATE_HTTP
  value: {{ printf "%s:%d" .Values.listenAddress (int .Values.ports.http) | quote }}
{{- if .Values.tls.enabled }}
- name: FORMGATE_TLS_CERT_FILE
  value: /etc/formgate/tls/tls.crt
- name: FORMGATE_TLS_KEY_FILE
  value: /etc/formgate/tls/tls.key
{{- if .Values.tls.mutual.enabled }}
- name: FORMGATE_TLS_CLIENT_CA_FILE
  value: /etc/formgate/client-ca/ca.crt
{{- if .Values.tls.mutual.identities }}
- name: FORMGATE_TLS_IDENTITIES_FILE
  value: /etc/formgate/identities/identities.toml
{{- end }}
{{- end }}
{{- else }}
- name: FORMGATE_INSECURE
  value: "true"
{{- end }}
- name: FORMGATE_POLICY_DIR
  value: /etc/formgate/policies
- name: FORMGATE_LOG_FORMAT
  value: json
{{- range $name, $value := .Values.settings }}
{{- if not (kindIs "invalid" $value) }}
- name: FORMGATE_{{ $name | snakecase | upper }}
  value: {{ if kindIs "float64" $value }}{{ $value | toJson | quote }}{{ else }}{{ $value | quote }}{{ end }}
{{- end }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "formgate.secretFiles" -}}
{{- if not .Values.embedded }}
- secret:
    name: {{ include "formgate.secretName" (list . .Values.secrets.pepper "keys") }}
    items:
      - key: {{ .Values.secrets.pepper.key }}
        path: pepper
- secret:
    name: {{ include "formgate.secretName" (list . .Values.secrets.sealingKey "keys") }}
    items:
      - key: {{ .Values.secrets.sealingKey.key }}
        path: sealing-key
{{- end }}
{{- if .Values.secrets.bootstrapToken.enabled }}
- secret:
    name: {{ include "formgate.secretName" (list . .Values.secrets.bootstrapToken "bootstrap") }}
    items:
      - key: {{ .Values.secrets.bootstrapToken.key }}
        path: bootstrap-token
{{- end }}
{{- end }}

{{- define "formgate.probe" -}}
{{- $probe := index . 1 -}}
httpGet:
  path: {{ index . 0 }}
  port: http
periodSeconds: {{ $probe.periodSeconds }}
timeoutSeconds: {{ $probe.timeoutSeconds }}
failureThreshold: {{ $probe.failureThreshold }}
{{- end }}
